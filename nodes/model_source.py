"""Identifies a model before it is loaded: by the nodes that it comes from, and their settings.

RAS Calibrate saves this with its plans, so that the hint finds the plans of a graph's model. A run finds them
by `fingerprint`, which needs the loaded weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

PASSES_ON = ("RASPatchModel",)
"""Nodes that change neither the weights nor the noise schedule."""

IN_CHAIN = ("MODEL", "CLIP")
"""Types of the links between the nodes of a chain. What comes through a link of another type, such as the
name of a file or an image, may determine the model too, but the chain does not contain it."""

Node = Mapping[str, Any]
"""A node of a prompt in API format: `class_type` and `inputs`."""


def source_in_prompt(node_of: Callable[[str], Node], node_id: str) -> str:
    """The digest of the nodes that the input `model` of a node comes from; empty if they are not one chain,
    or do not alone determine the model.

    Args:
        node_of: function from a node's id to the node.
        node_id: id of the node.
    """
    chain, link = [], node_of(node_id)["inputs"].get("model")
    while link is not None:
        if not _is_link(link):
            return ""
        node = node_of(link[0])
        links = _links(node)
        if node["class_type"] not in PASSES_ON:
            if not all(kind in IN_CHAIN for kind, _ in links):
                return ""
            values = {name: value for name, value in node["inputs"].items() if not _is_link(value)}
            chain.append([node["class_type"], values])
        models = [found for kind, found in links if kind == "MODEL"]
        if len(models) > 1:
            return ""
        link = models[0] if models else None
    return digest(chain)


def digest(chain: Sequence[Any]) -> str:
    """16 hexadecimal digits for a chain of nodes; empty for an empty chain.

    Args:
        chain: for each node, its class and a dict of its settings, the nearest to the model's user
            first.
    """
    if not chain:
        return ""
    text = json.dumps(_plain(chain), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _links(node: Node) -> list[tuple[Any, Any]]:
    """The links to a node's inputs, each with the type of the input; None if the type is not known."""
    from nodes import NODE_CLASS_MAPPINGS

    known = NODE_CLASS_MAPPINGS.get(node["class_type"])
    declared = known.INPUT_TYPES() if known else {}
    groups = [declared.get(group) or {} for group in ("required", "optional")]
    types = {name: kind[0] for group in groups for name, kind in group.items()}
    return [(types.get(name), value) for name, value in node["inputs"].items() if _is_link(value)]


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def _plain(value: Any) -> Any:
    """Whole numbers as int: in a browser, 1.0 and 1 are the same."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
