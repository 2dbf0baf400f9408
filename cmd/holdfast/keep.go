package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/internal/server"
	"github.com/holdfast-dr/holdfast/scheduler"
)

func (n *node) serveKeeping(*server.Server) {}

func (n *node) doRetention(context.Context, scheduler.Job, order, func(any)) (any, error) { return nil, nil }
func (n *node) doPurge(context.Context, scheduler.Job, order, func(any)) (any, error)     { return nil, nil }
func (e *env) retentionCommand() *cobra.Command                                          { return &cobra.Command{Use: "retention"} }
func (e *env) projectCommand() *cobra.Command                                            { return &cobra.Command{Use: "project"} }
func (e *env) purgeCommand() *cobra.Command                                              { return &cobra.Command{Use: "purge"} }
