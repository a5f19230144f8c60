"""How the demo models were trained. Start with README.md; nothing here is imported by the node pack."""
