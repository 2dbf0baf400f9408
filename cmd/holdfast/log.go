package main

import (
	"os"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/holdfast-dr/holdfast/configs"
	"github.com/holdfast-dr/holdfast/internal/notify"
)

// logger is what commands log with: warnings and worse, on standard error.
func (e *env) logger() *zap.Logger { return newLogger(zapcore.WarnLevel, true) }

// daemonLogger writes JSON lines, which journald keeps.
func daemonLogger() *zap.Logger { return newLogger(zapcore.InfoLevel, false) }

func newLogger(level zapcore.Level, plain bool) *zap.Logger {
	enc := zap.NewProductionEncoderConfig()
	enc.TimeKey, enc.EncodeTime = "time", zapcore.RFC3339NanoTimeEncoder
	encoder := zapcore.NewJSONEncoder(enc)
	if plain {
		enc.EncodeLevel = zapcore.CapitalLevelEncoder
		encoder = zapcore.NewConsoleEncoder(enc)
	}
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(os.Stderr), level))
}

// notifier makes the receivers of the configuration.
func notifier(list []configs.Notify, log *zap.Logger) (*notify.Notifier, error) {
	var out []notify.Receiver
	for _, c := range list {
		url, err := c.URL.Load()
		if err != nil {
			return nil, usage("notify[%s].url: %w", c.Name, err)
		}
		out = append(out, notify.Receiver{Name: c.Name, URL: string(url), On: c.On})
	}
	return notify.New(out, log)
}
