package api

import (
	"net/http"

	"github.com/danielgtaylor/huma/v2/adapters/humagin"
	"github.com/gin-gonic/gin"
	"go.opentelemetry.io/contrib/instrumentation/github.com/gin-gonic/gin/otelgin"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
)

const (
	apiPath    = "/api/v1"
	eventsPath = apiPath + "/events"
	riverPath  = "/river"

	invitationPath = "/invitation"
)

// routes is every route there is, all below the base path. Operations need a scope unless described as public.
func (a *API) routes(tracers trace.TracerProvider) {
	if tracers == nil {
		tracers = tracenoop.NewTracerProvider()
	}
	a.quiet = map[string]bool{a.basePath + "/livez": true, a.basePath + "/readyz": true}
	a.router.Use(
		otelgin.Middleware("medianest",
			otelgin.WithTracerProvider(tracers),
			otelgin.WithPropagators(propagation.TraceContext{}),
			otelgin.WithMeterProvider(metricnoop.NewMeterProvider()), // Prometheus has them
			otelgin.WithGinFilter(func(c *gin.Context) bool { return !a.quiet[c.FullPath()] }),
		),
		a.scope,
		a.secure,
		a.cors,
	)
	a.router.NoRoute(func(c *gin.Context) { a.writeProblem(c, newProblem(CodeNoSuchRoute, "")) })
	a.router.NoMethod(func(c *gin.Context) { a.writeProblem(c, newProblem(CodeMethodNotAllowed, "")) })
	root := a.router.Group(a.basePath)
	a.huma = humagin.NewWithGroup(a.router, root, a.document())

	// Operations: typed, in the OpenAPI document.
	operation(a, http.MethodPost, apiPath+"/downloads", createDownload, a.handleCreateDownload)
	operation(a, http.MethodGet, apiPath+"/downloads", listDownloads, a.handleListDownloads)
	operation(a, http.MethodGet, apiPath+"/downloads/{id}", findDownload, a.handleFindDownload)
	operation(a, http.MethodPost, apiPath+"/downloads/{id}/cancel", cancelDownload, a.handleCancelDownload)
	operation(a, http.MethodPost, apiPath+"/downloads/{id}/retry", retryDownload, a.handleRetryDownload)
	operation(a, http.MethodPost, apiPath+"/downloads/{id}/retry-failed", retryFailed, a.handleRetryFailed)
	operation(a, http.MethodPost, apiPath+"/downloads/{id}/now", downloadNow, a.handleDownloadNow)
	operation(a, http.MethodDelete, apiPath+"/downloads/{id}", deleteDownload, a.handleDeleteDownload)
	operation(a, http.MethodGet, apiPath+"/jobs", listJobs, a.handleListJobs)
	operation(a, http.MethodGet, apiPath+"/jobs/{id}", findJob, a.handleFindJob)
	operation(a, http.MethodPost, apiPath+"/jobs/{id}/cancel", cancelJob, a.handleCancelJob)
	operation(a, http.MethodPost, apiPath+"/jobs/{id}/retry", retryJob, a.handleRetryJob)
	operation(a, http.MethodPost, apiPath+"/jobs/bulk", bulkJobs, a.handleBulkJobs)
	operation(a, http.MethodGet, apiPath+"/jobs/{id}/attempts", listAttempts, a.handleListAttempts)
	operation(a, http.MethodGet, apiPath+"/jobs/{id}/log", tailLog, a.handleTailLog)
	operation(a, http.MethodPatch, apiPath+"/jobs/{id}", setJobPriority, a.handleSetJobPriority)
	operation(a, http.MethodGet, eventsPath, streamEvents, a.handleEvents)
	operation(a, http.MethodGet, apiPath+"/workers", listWorkers, a.handleListWorkers)
	operation(a, http.MethodPost, apiPath+"/workers/{id}/drain", drainWorker, a.handleDrainWorker)
	operation(a, http.MethodGet, apiPath+"/limits", listLimits, a.handleListLimits)
	operation(a, http.MethodGet, apiPath+"/limits/{key}", findLimit, a.handleFindLimit)
	operation(a, http.MethodPut, apiPath+"/limits/{key}", setLimit, a.handleSetLimit)
	operation(a, http.MethodDelete, apiPath+"/limits/{key}", deleteLimit, a.handleDeleteLimit)
	operation(a, http.MethodGet, apiPath+"/breakers", listBreakers, a.handleListBreakers)
	operation(a, http.MethodDelete, apiPath+"/breakers/{key}", resetBreaker, a.handleResetBreaker)
	operation(a, http.MethodGet, apiPath+"/pauses", listPauses, a.handleListPauses)
	operation(a, http.MethodPut, apiPath+"/pauses/{key}", setPause, a.handleSetPause)
	operation(a, http.MethodDelete, apiPath+"/pauses/{key}", deletePause, a.handleDeletePause)
	operation(a, http.MethodGet, apiPath+"/queues", listQueues, a.handleListQueues)
	operation(a, http.MethodGet, apiPath+"/audit", listAudit, a.handleListAudit)
	operation(a, http.MethodGet, apiPath+"/audit/verify", verifyAudit, a.handleVerifyAudit)
	operation(a, http.MethodGet, apiPath+"/audit/export", exportAudit, a.handleExportAudit)
	operation(a, http.MethodGet, apiPath+"/schedule-kinds", listScheduleKinds, a.handleListScheduleKinds)
	operation(a, http.MethodPost, apiPath+"/schedules", createSchedule, a.handleCreateSchedule)
	operation(a, http.MethodGet, apiPath+"/schedules", listSchedules, a.handleListSchedules)
	operation(a, http.MethodGet, apiPath+"/schedules/{id}", findSchedule, a.handleFindSchedule)
	operation(a, http.MethodPut, apiPath+"/schedules/{id}", updateSchedule, a.handleUpdateSchedule)
	operation(a, http.MethodDelete, apiPath+"/schedules/{id}", deleteSchedule, a.handleDeleteSchedule)
	operation(a, http.MethodPost, apiPath+"/schedules/{id}/pause", pauseSchedule, a.handlePauseSchedule)
	operation(a, http.MethodPost, apiPath+"/schedules/{id}/resume", resumeSchedule, a.handleResumeSchedule)
	operation(a, http.MethodPost, apiPath+"/schedules/{id}/run", runSchedule, a.handleRunSchedule)
	operation(a, http.MethodGet, apiPath+"/schedules/{id}/runs", listScheduleRuns, a.handleListScheduleRuns)
	operation(a, http.MethodPost, apiPath+"/events/ticket", createTicket, a.handleCreateTicket)
	operation(a, http.MethodGet, apiPath+"/users/me", findMe, a.handleFindMe)
	operation(a, http.MethodGet, apiPath+"/users/me/export", exportMe, a.handleExportMe)
	operation(a, http.MethodPut, apiPath+"/users/me/password", setMyPassword, a.handleSetMyPassword)
	operation(a, http.MethodGet, apiPath+"/users", listUsers, a.handleListUsers)
	operation(a, http.MethodPost, apiPath+"/users", inviteUser, a.handleInviteUser)
	operation(a, http.MethodGet, apiPath+"/users/{id}", findUser, a.handleFindUser)
	operation(a, http.MethodPatch, apiPath+"/users/{id}", updateUser, a.handleUpdateUser)
	operation(a, http.MethodDelete, apiPath+"/users/{id}", eraseUser, a.handleEraseUser)
	operation(a, http.MethodPost, apiPath+"/users/{id}/invitation", inviteAgain, a.handleInviteAgain)
	operation(a, http.MethodGet, apiPath+"/users/{id}/export", exportUser, a.handleExportUser)
	operation(a, http.MethodGet, apiPath+"/roles", listRoles, a.handleListRoles)
	operation(a, http.MethodPut, apiPath+"/roles/{name}/quota", setRoleQuota, a.handleSetRoleQuota)
	operation(a, http.MethodGet, apiPath+"/access-rules", listAccessRules, a.handleListAccessRules)
	operation(a, http.MethodPut, apiPath+"/access-rules/{name}", setAccessRule, a.handleSetAccessRule)
	operation(a, http.MethodDelete, apiPath+"/access-rules/{name}", deleteAccessRule, a.handleDeleteAccessRule)
	operation(a, http.MethodGet, apiPath+"/tokens", listTokens, a.handleListTokens)
	operation(a, http.MethodPost, apiPath+"/tokens", createToken, a.handleCreateToken)
	operation(a, http.MethodDelete, apiPath+"/tokens/{id}", revokeToken, a.handleRevokeToken)
	operation(a, http.MethodGet, apiPath+"/secrets", listSecrets, a.handleListSecrets)
	operation(a, http.MethodPut, apiPath+"/secrets/{name}", setSecret, a.handleSetSecret)
	operation(a, http.MethodDelete, apiPath+"/secrets/{name}", deleteSecret, a.handleDeleteSecret)
	operation(a, http.MethodPost, apiPath+"/secrets/rotate", rotateSecrets, a.handleRotateSecrets)
	operation(a, http.MethodPost, apiPath+"/auth/sign-in", signIn, a.handleSignIn)
	operation(a, http.MethodGet, apiPath+"/auth/providers", listProviders, a.handleListProviders)
	operation(a, http.MethodPost, apiPath+"/auth/plex/pin", createPlexPin, a.handleCreatePlexPin)
	operation(a, http.MethodPost, apiPath+"/auth/plex/verify", verifyPlexPin, a.handleVerifyPlexPin)
	operation(a, http.MethodPost, apiPath+"/auth/invitation", redeemInvitation, a.handleRedeemInvitation)
	operation(a, http.MethodPost, apiPath+"/auth/refresh", refreshSession, a.handleRefreshSession)
	operation(a, http.MethodPost, apiPath+"/auth/sign-out", signOut, a.handleSignOut)
	operation(a, http.MethodPost, apiPath+"/auth/sign-out-everywhere", signOutEverywhere, a.handleSignOutEverywhere)
	operation(a, http.MethodGet, apiPath+"/auth/sessions", listSessions, a.handleListSessions)
	operation(a, http.MethodDelete, apiPath+"/auth/sessions/{id}", revokeSession, a.handleRevokeSession)
	operation(a, http.MethodGet, "/livez", livez, a.handleLivez)
	operation(a, http.MethodGet, "/readyz", readyz, a.handleReadyz)
	a.finishDocument()

	// Pages for people, and what they are made of.
	root.GET("/", a.handleRoot)
	root.GET("/docs", a.handleDocs)
	root.GET("/openapi.json", a.handleOpenAPI)
	root.GET("/login", a.handleLoginForm)
	root.POST("/login", a.handleLogin)
	root.GET("/login/:provider", a.handleLoginElsewhere)
	root.GET("/login/:provider/done", a.handleLoginDone)
	root.POST("/logout", a.handleLogout)
	root.GET(invitationPath, a.handleInvitationForm)
	root.POST(invitationPath, a.handleInvitation)
	root.GET("/static/:name", a.handleStatic)
	if a.basePath != "" {
		a.router.GET(a.basePath, func(c *gin.Context) { c.Redirect(http.StatusMovedPermanently, a.basePath+"/") })
	}

	// River UI, for administrators.
	if a.riverUI != nil {
		root.GET(riverPath, func(c *gin.Context) { c.Redirect(http.StatusMovedPermanently, a.basePath+riverPath+"/") })
		root.Match([]string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}, riverPath+"/*path", a.handleRiver)
	}
}

// secure sets the headers that make browsers careful. Pages and River UI set a content security policy of their own.
func (a *API) secure(c *gin.Context) {
	h := c.Writer.Header()
	h.Set("Content-Security-Policy", policyNothing)
	h.Set("X-Content-Type-Options", "nosniff")
	// Not no-referrer: with that, browsers post our own forms with Origin: null, which is another site's too. Over plain
	// http, as in many homes, they send no Sec-Fetch-Site that would tell the difference.
	h.Set("Referrer-Policy", "same-origin")
	h.Set("X-Frame-Options", "DENY") // for browsers that do not know frame-ancestors
	if a.isSecure(c.Request) {       // browsers ignore it otherwise, and say so in the console
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Strict-Transport-Security", "max-age=31536000")
	}
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()")
	h.Set("Cache-Control", "no-store")
	c.Next()
}

// Content security policies. None allows inline script, other hosts, or framing.
const (
	policyNothing = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	policyPages   = "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
