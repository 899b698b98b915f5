"""A pool, from the first line to the last; run it with a connection string, or
without one on a private PostgreSQL (``pip install fastpool[demo]``)::

    python examples/quickstart.py postgresql://localhost/postgres
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import fastpool
from fastpool.testing import LocalPostgres


def main(dsn: str) -> None:
    with fastpool.Pool(dsn, min_size=2, max_size=4) as pool:
        pool.open(wait=True)  # fail at the start rather than at the first request

        with pool.connection() as conn:
            conn.run("CREATE TEMP TABLE counter (n int)")
            conn.run("INSERT INTO counter VALUES (0)")
            with conn.transaction():
                conn.run("UPDATE counter SET n = n + :by", by=2)
            print("counted:", conn.run("SELECT n FROM counter")[0][0])

        # Any number of threads share the pool; four connections serve them all.
        with ThreadPoolExecutor(16) as threads:
            squares = threads.map(lambda n: pool.run("SELECT :n::int * :n::int", n=n), range(100))
            print("sum of squares:", sum(rows[0][0] for rows in squares))

        try:
            with pool.transaction(read_only=True) as conn:
                conn.run("CREATE TABLE never (n int)")
        except Exception as error:
            print("refused and rolled back:", error.args[0]["M"])

        stats = pool.stats()
        print(f"{stats.acquires} acquires on {stats.created} connections, {stats.waits} waits")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with LocalPostgres() as server:
            main(server.dsn)
