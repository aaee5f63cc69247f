"""Random changes of a JSON document: what an editor, a script or an attacker may leave behind."""

import copy

from hypothesis import strategies as st

# Values of every kind that JSON can hold, and numbers that are too large for most things.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 30),
    st.sampled_from([-1, 2**24, 2**31, 2**63, 10**30, -(10**30), 10**400]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from(["", "1", "a.png", "../a.png", "/etc/passwd", "a\0b", "http://x/y", "..", "é"]),
    st.text(max_size=5),
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def places_of(value, path=()):
    """Every path into a document: tuples of keys and positions."""
    children = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, child in children:
        yield (*path, key)
        yield from places_of(child, (*path, key))


def at(document, path):
    for key in path:
        document = document[key]
    return document


@st.composite
def mutated(draw, document):
    """The document after one to three changes: values replaced, removed, repeated or exchanged."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        places = list(places_of(document))
        if not places:
            break
        *parents, key = draw(st.sampled_from(places))
        parent = at(document, parents)
        operation = draw(st.sampled_from(["replace", "remove", "repeat", "exchange"]))
        if operation == "remove":
            del parent[key]
        elif operation == "repeat" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        elif operation == "exchange":
            parent[key] = copy.deepcopy(at(document, draw(st.sampled_from(places))))
        else:
            parent[key] = draw(JUNK)
    return document
