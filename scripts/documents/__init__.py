"""Functions that return the generated parts of the documentation as Markdown.

The pages call these functions between cogapp's markers:

    <!-- [[[cog from documents import figures, show; show(figures.speed()) ]]] -->
    <!-- [[[end]]] -->

`make docs-tables` runs them and writes what they return between the two lines. A test checks that running them again
changes nothing.
"""


def show(markdown: str) -> None:
    """Print a generated part with an empty line before and after it, which ends the comment and the table."""
    print(f"\n{markdown}\n")
