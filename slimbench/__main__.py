"""`python -m slimbench`, for where the console command is not on the path."""

from slimbench.cli import main

if __name__ == "__main__":
    main()
