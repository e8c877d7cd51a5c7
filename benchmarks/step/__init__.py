"""One training step: against PyTorch, OneFlow and itself op by op, over ranks, and what it consists of."""
