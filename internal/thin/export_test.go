package thin

// SocketOf is tested beside configs.
var SocketOf = socketOf
