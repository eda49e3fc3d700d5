"""Steps that several jobs take. A folder in here is no command, see `engine.jobs.commands`."""
