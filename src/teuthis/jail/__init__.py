"""The walls around a VM's processes.

Rooms: `walls` the list of all and the call that raises them; `seccomp` on `bpf`, `landlock`,
`namespaces`, `limits`, `capabilities`, `identity` one wall or family each; `kernel` system calls
that Python lacks; `worker` what a VM's worker keeps.
"""
