"""Published tables and our own leaderboards, as data files beside this one."""
