"""What is kept: the database, the journal that is written behind the requests, and what is read back from it.

Rule: nothing here is ever on a request's path. When the database is away requests flow, and what is lost is counted.
"""
