"""The cache at rest: format, writer, reader. `docs/cache-format.md` shows the files of one."""
