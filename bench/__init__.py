"""aimport and its peers on the same mail, the same servers, in the same run: `python -m bench`.

    corpus (one seed) ──link──▶ source account ──CONTENDER──▶ destination account ──count──▶ figures
                                      ▲ Dovecot                       ▲ Dovecot

    scenarios  what is measured, as a table: mail, paths, what lies between, who takes part
    corpus     the generated mail, and a fresh, warm copy of it for every trial
    servers    two private servers and what the machine is
    latency    a link that is as far away, or as narrow, as asked; appends: what APPENDs take on it
    peers      the contenders, each a whole command, and why one is left out
    trials     one contender, once; what has arrived is counted
    measure    commands from outside: time, CPU, memory
    results    the figures of every round, ratios, JSON
    goals      what the ratios and the CPU of a message should be
    table      the same as plain text or markdown; plot: as SVG

    floor, floors     contenders of our own: the same octets from memory; FETCH to a sink, plain writes, hard links
    baseline          a copy in imaplib; aioimaplib_copy: with aioimaplib's own commands
    null_server       an IMAP server that stores nothing, in a process of its own
    client_cpu        aimport against it: what the client alone costs, and a profile (`profiled`)
    workers           what a second process brings, and what handing out a million users costs
    compare           two builds or two settings there, pair by pair: the gate against slower ones
    growth            what is paid for a message, or a line, when there are ten times as many (`answers`)

Every trial has names of its own and nothing is deleted before the end: on ext4 a run after a
deletion takes up to three times as long. Ratios are taken within a round, never against memory.
"""
