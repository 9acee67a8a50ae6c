"""Functions that return the generated parts of the documentation as Markdown.

The pages call these functions between cogapp's markers. `make docs-tables` runs them and writes what they return into
the pages; a test checks that running them again changes nothing.
"""
