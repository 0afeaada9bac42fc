"""All SQL of identity, one module an area. Rows go in and out as the records of `directory.py`."""
