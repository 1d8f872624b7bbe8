from data_tools.cli import main

main()
