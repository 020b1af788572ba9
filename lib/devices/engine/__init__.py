"""How the simulation works inside: turns, meetings, and the words of its errors."""
