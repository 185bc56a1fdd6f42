from hypothesis import given
from hypothesis import strategies as st

from bitnet.generate.stop_strings import StopStrings

TEXT = st.text("ab", max_size=12)


def first_ending(text, stop):
    """Where the stop string that ends first begins; of those that end together, the longest."""
    ends = [(at + len(s), at) for s in stop for at in range(len(text)) if text.startswith(s, at)]
    return min(ends)[1] if ends else None


@given(st.lists(TEXT, max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_output_does_not_depend_on_the_pieces(pieces, stop):
    watcher, out = StopStrings(stop), ""
    for piece in pieces:
        out += watcher.push(piece)
        if watcher.found:
            break
    out += watcher.finish()
    text = "".join(pieces)
    at = first_ending(text, stop)
    assert watcher.found == (at is not None)
    assert out == (text if at is None else text[:at])


def test_only_what_may_become_a_stop_string_is_held_back():
    watcher = StopStrings(["<end>"])
    assert [watcher.push(piece) for piece in ("a<", "e", "x", "<<e", "nd")] == ["a", "", "<ex", "<", ""]
    assert watcher.finish() == "<end"
