from precompute.cli import main

main()
