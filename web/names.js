// The names of samplers where several of them are named: in estimates, and above live views.

/**
 * The names of samplers, each given by its `title` and its `id`, such as "12:5" in a subgraph. Equal titles are followed
 * by the end of the id: by as many of its numbers as tell the samplers apart.
 */
export function namesOf(samplers) {
  return samplers.map(({ title, id }) => {
    const equal = samplers.filter((one) => one.title === title).map((one) => one.id);
    const ends = (count) => equal.map((one) => end(one, count));
    if (equal.length < 2) return title;
    let count = 1;
    while (new Set(ends(count)).size < equal.length && count < id.split(":").length) count++;
    return `${title} #${end(id, count)}`;
  });
}

function end(id, count) {
  return id.split(":").slice(-count).join(":");
}
