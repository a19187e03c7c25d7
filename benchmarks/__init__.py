"""What measures: speed, memory and AP, each beside something else; all documented figures come from here."""
