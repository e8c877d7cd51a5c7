"""Distributed training: ranks, rendezvous, collectives, tensor placement and failure detection."""
