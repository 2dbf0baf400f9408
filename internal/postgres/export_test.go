package postgres

var (
	StartSQL = startSQL
	StopSQL  = stopSQL
)
