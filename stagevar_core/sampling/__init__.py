"""The loop over scales: settings, noise, rows, result, trace, forecast."""
