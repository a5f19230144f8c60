"""How the demo models were trained. Nothing here is imported by the node pack."""
