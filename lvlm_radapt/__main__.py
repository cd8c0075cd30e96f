"""`python -m lvlm_radapt`, as launchers start it."""

from lvlm_radapt.cli import main

if __name__ == "__main__":
    main()
