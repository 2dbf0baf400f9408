package postgres

var (
	StartSQL      = startSQL
	StopSQL       = stopSQL
	BaseBackupSQL = baseBackupSQL
)
