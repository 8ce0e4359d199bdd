"""Studies, the scripts behind the tables: `python reproduce.py` lists them; see study.py."""
