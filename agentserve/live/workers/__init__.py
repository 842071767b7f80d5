"""Several processes on one port: workers keep the clients' connections, one process keeps the scheduler.

    client ──▶ worker ──(a socket pair, frames)──▶ the scheduler's process: identity, decisions, books
      ▲          │ ▲                                          │
      │          ▼ └────────── Carry: to which engine, how ───┘
      └──── the engine's reply, relayed and read by the worker

A worker passes each whole request on and plays back what it gets. A streamed reply, which is where the processor time
goes, it is told to fetch itself: it relays it, reads it beside, and reports the outcome. So one scheduler sees all
programs and the whole of every engine's KV, and what grows with tokens is done by as many cores as there are workers.

- `frames`: what is said between the two, as values, and how it is framed
- `link`: one end of the socket pair
- `desk`: the scheduler's side: a request from a worker, served as any other ASGI request
- `front`: the worker's side: the ASGI application that knows nothing but whom to ask
- `carrying`: a worker fetches and relays one reply
- `process`: a worker's `main`
- `server`: the scheduler's process: starts the workers, starts those anew that die, and stops them
"""
