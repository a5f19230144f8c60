// Draws over an image which regions a step computed: computed regions unchanged, reused ones darkened.

// Okabe-Ito colours, which remain distinct with any kind of colour vision; the same as in RAS Mask Preview.
export const COLOURS = { regional: "#E69F00", dense: "#56B4E9", reset: "#CC79A7" };

const LONG_SIDE = 512;
const NO_IMAGE = "#969696";
const REUSED = [12, 14, 18, 170]; // red, green, blue, alpha over the image
const HALO = "rgba(0, 0, 0, 0.6)"; // keeps an outline visible on bright parts

/** Base64 with eight tokens per byte, the first in the highest bit -> an array of 0 and 1; null -> null. */
export function unpackMask(base64, count) {
  if (base64 == null) return null;
  const bytes = atob(base64);
  return Uint8Array.from({ length: count }, (_, i) => (bytes.charCodeAt(i >> 3) >> (7 - (i & 7))) & 1);
}

/**
 * Draws one step.
 *
 * @param canvas an HTMLCanvasElement; its size is set to the proportions of the image
 * @param run `grid` [rows, columns] of tokens, `latent` [height, width] in latent pixels, `patch` [height, width]
 *   of a token in latent pixels
 * @param step `kind`, and `mask` with one number per token, or null if all are computed
 * @param image anything that drawImage accepts, or null for neutral grey
 */
export function drawStep(canvas, run, step, image) {
  const [height, width] = run.latent;
  const scale = LONG_SIDE / Math.max(height, width);
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  drawBackdrop(context, image);
  if (step.mask) {
    const token = run.patch.map((side) => side * scale); // the last row and column may extend beyond the edge
    darkenReused(context, run.grid, step.mask, token);
    strokeTwice(context, regionOutline(run.grid, step.mask, token), COLOURS[step.kind], 2);
  } else {
    const frame = new Path2D();
    frame.rect(2, 2, canvas.width - 4, canvas.height - 4);
    strokeTwice(context, frame, COLOURS[step.kind], 4);
  }
}

function drawBackdrop(context, image) {
  const { width, height } = context.canvas;
  context.fillStyle = NO_IMAGE;
  context.fillRect(0, 0, width, height);
  if (image) context.drawImage(image, 0, 0, width, height);
}

function darkenReused(context, [rows, columns], mask, token) {
  const veil = new ImageData(columns, rows);
  mask.forEach((active, i) => active || veil.data.set(REUSED, 4 * i));
  const small = new OffscreenCanvas(columns, rows);
  small.getContext("2d").putImageData(veil, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, columns * token[1], rows * token[0]);
  context.imageSmoothingEnabled = true;
}

/** The boundary between computed and reused tokens. */
function regionOutline([rows, columns], mask, token) {
  const path = new Path2D();
  const isActive = (row, column) =>
    row >= 0 && column >= 0 && row < rows && column < columns && mask[row * columns + column] === 1;
  for (let row = 0; row <= rows; row++) {
    for (let column = 0; column <= columns; column++) {
      const here = isActive(row, column);
      if (here !== isActive(row - 1, column)) line(path, column, row, column + 1, row, token);
      if (here !== isActive(row, column - 1)) line(path, column, row, column, row + 1, token);
    }
  }
  return path;
}

function line(path, x0, y0, x1, y1, [height, width]) {
  path.moveTo(x0 * width, y0 * height);
  path.lineTo(x1 * width, y1 * height);
}

function strokeTwice(context, path, colour, width) {
  context.lineCap = "square";
  for (const [style, lineWidth] of [[HALO, width + 2], [colour, width]]) {
    context.strokeStyle = style;
    context.lineWidth = lineWidth;
    context.stroke(path);
  }
}
