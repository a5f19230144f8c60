"""Code that the programs share. Imports nothing from the other folders of bench."""
