"""The methods of composition: many low-rank changes of a module become one."""
