"""The settings of every command: flags, defaults and hyper-parameters, validated and frozen."""
