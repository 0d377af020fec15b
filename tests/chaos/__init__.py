"""Chaos: several workers and clients, faults at random, and a check of the result.

| module | what |
|---|---|
| run | one run: everything started, the faults, the wait until all has drained, the check |
| orders | the requests that clients make |
| clients | sessions that commit, roll back, use savepoints and two-phase commit |
| workers | worker processes and sessions with `call net.work()`, started again when they end |
| witness | the server that requests go to: it records them, misbehaves, and kills who sent them |
| proxy | the way to PostgreSQL for some: it cuts, stops and swallows at named points |
| server | PostgreSQL on a small disk with a clock that can be moved, and faults at commits |
| link | a network namespace whose cable can be pulled |
| faults | what goes wrong, and when: by a seed |
| checker | reads back what was committed, what was seen and what was recorded, and compares |

    make chaos SECONDS=600 SEED=1
"""
