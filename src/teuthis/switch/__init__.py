"""The switch: the one process that sees frames of more than one VM, and lets pass what is theirs.

Rooms: `rules` what a VM may send; `rate` how much of it; `switch` ports and forwarding; `uplink`
the stream to passt, and what may go there; `main` the process, top to bottom; `protocol` what the
root side tells it. Each named network has a switch of its own, and each VM on the user's network
has one between itself and passt: a worker that a guest has taken over is held to the same rules.
"""
