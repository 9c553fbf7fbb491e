from lengthen.cli import main

main()
