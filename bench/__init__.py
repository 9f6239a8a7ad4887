"""How fast the server is, measured against the least that could be done in its place, in the same run.

``python -m bench`` (or ``make bench``) starts five kinds of processes on this machine and nothing beside it:

- a **source** that speaks the provider's realtime protocol and sends 4800 bytes of audio every 100 ms in each session,
  the moment of sending written into the audio itself (``source.py``);
- **followers** that read event streams and compare each delta's stamp with their clock (``followers.py``);
- the **server** as in production, `python -m server serve`, with an embedded PostgreSQL that survives power failures,
  the spool, the leases and the storing of what was spoken;
- the **floor**, a bare relay from the source's socket to the follower's, with the same two network libraries, without
  a database, an id, an authorization or a second reader (``relay.py``);
- a **plain handler**, the same relay as it is usually written: FastAPI, ``json``, a queue for each client
  (``plain.py``).

The three take turns with the same source and the same followers, so that the ratios mean something on any
machine; absolute figures are those of this machine on this day. What is reported, for each number of streams:

========================  ==============================================================================================
CPU per delta             user and system time of the server process in the measured window, divided by the deltas that
                          were delivered in it; PostgreSQL's own processes are shown beside it, as parts of a core
relay latency             from the source's write to the arrival of the whole event at the follower: p50, p99, worst
first audio               from the request to the first audio, while the streams are being started one after the other
pace                      deltas delivered in the window, of those that real-time speech would have brought
========================  ==============================================================================================

and once: many starts within two seconds; the first audio of single texts, by the native stream and at the OpenAI-shaped
door; many followers of one speech; streams beside texts that are spoken in pieces, with and without being made into
MP3; and how many requests per second the endpoint that clients poll answers to eight
connections, against an endpoint that makes one indexed SELECT and nothing else. ``docs/performance.md`` says how each
figure is meant. Every stream is checked as well: each delta once and
in order, the generation completed at the end; a run that misses something ends with status 1.

The goals stand in `GOALS` (``report.py``); missing one is said, and is no failure: other machines are other machines.
"""
