"""A Kafka cluster in memory: logs, transactions, groups and their clients, on virtual time.

It models what our code relies on, and what can go wrong with it:

- a topic has an id; deleted and created again it has another id, and its offsets begin at 0
- readers see committed records only, up to the first record of an open transaction (the last stable offset)
- a transactional id has one producer: a newer one fences it, and the broker gives up a transaction that takes too long
- a commit may be done although its answer is lost, and its markers are written a moment later
- a producer sends in the background: of a killed process some queued records still arrive
- a group gives its partitions to its members cooperatively; a member that is silent for a session loses all of them,
  goes on with its batch, learns of it at its next call, and cannot commit until then
- the broker may be away, forget committed offsets, and a client may stall on a partition without noticing
"""
