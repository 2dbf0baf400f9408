package configs

import (
	"errors"
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // time zones must mean the same on a host without zoneinfo

	"github.com/robfig/cron/v3"
)

// Cron is a schedule in five fields (minute, hour, day, month, weekday), or
// @hourly, @daily, @weekly, @monthly, @yearly; UTC, unless CRON_TZ=ZONE stands
// before it. "" is never.
type Cron string

const cronMeant = `five cron fields such as "15 */6 * * *", UTC, or "CRON_TZ=Europe/Rome 15 2 * * *"`

func (c *Cron) parseScalar(text string) error {
	zone, fields, err := splitCronZone(text)
	if err != nil {
		return err
	}
	// Intervals count from the start of the process: no slot would have a name.
	if strings.HasPrefix(fields, "@every") || strings.Contains(fields, "TZ=") {
		return errors.New(cronMeant)
	}
	schedule, err := cron.ParseStandard(fields)
	if err != nil {
		return fmt.Errorf("%s (%w)", cronMeant, err)
	}
	if schedule.Next(time.Unix(0, 0).In(zone)).IsZero() {
		return errors.New("a time that comes: this day is in no month")
	}
	*c = Cron(text)
	return nil
}

// splitCronZone takes CRON_TZ=ZONE off the fields. The library's own parser
// panics where nothing follows the zone.
func splitCronZone(text string) (*time.Location, string, error) {
	text = strings.TrimSpace(text)
	name, found := strings.CutPrefix(text, "CRON_TZ=")
	if !found {
		return time.UTC, text, nil
	}
	name, fields, _ := strings.Cut(name, " ")
	zone, err := time.LoadLocation(name)
	if err != nil || name == "" || name == "Local" {
		return nil, "", fmt.Errorf("a time zone of the IANA database such as Europe/Rome after CRON_TZ=, not %q", name)
	}
	return zone, strings.TrimSpace(fields), nil
}
