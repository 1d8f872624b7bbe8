"""Who starts the processes that encode: what `--engine` names, one module each."""
