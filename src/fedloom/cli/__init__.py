"""The command: one file a verb, light to import; a verb imports what it needs when it runs."""
