"""From the files of finished runs to tables, plots and pages. Reads CSV, JSON and YAML; never loads torch."""
