"""``python -m circuitkeep`` is the console command."""

from circuitkeep.cli import main

if __name__ == "__main__":
    main()
