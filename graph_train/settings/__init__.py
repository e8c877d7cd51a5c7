"""The flags, defaults and hyper-parameters of every command, checked and frozen."""
