"""Making models: shapes from landmarks, patch experts from photographs."""
