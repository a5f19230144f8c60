"""What the programs share. Imports nothing of the other folders of bench."""
