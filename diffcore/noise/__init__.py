"""What noise is: schedules, angles, the process behind them, trajectories of times. No network."""
