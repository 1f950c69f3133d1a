"""Tables of records: for the terminal, for papers, for the web."""
