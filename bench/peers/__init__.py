"""What Tokenbus is measured against: each peer as a `bench.systems.System` that installs, starts and ends itself."""
