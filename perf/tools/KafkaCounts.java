import java.util.Set;
import java.util.TreeMap;
import javax.management.MBeanServerConnection;
import javax.management.ObjectName;
import javax.management.remote.JMXConnectorFactory;
import javax.management.remote.JMXServiceURL;

/** Prints what a broker has counted since its start, a name and a number a line: requests by kind, and bytes of topics. */
public class KafkaCounts {
    public static void main(String[] arguments) throws Exception {
        String address = "service:jmx:rmi:///jndi/rmi://127.0.0.1:" + arguments[0] + "/jmxrmi";
        try (var connector = JMXConnectorFactory.connect(new JMXServiceURL(address))) {
            MBeanServerConnection broker = connector.getMBeanServerConnection();
            var counts = new TreeMap<String, Long>();
            add(broker, counts, "kafka.network:type=RequestMetrics,name=RequestsPerSec,*");
            add(broker, counts, "kafka.server:type=BrokerTopicMetrics,name=BytesInPerSec");
            add(broker, counts, "kafka.server:type=BrokerTopicMetrics,name=BytesOutPerSec");
            counts.forEach((name, count) -> System.out.println(name + " " + count));
        }
    }

    private static void add(MBeanServerConnection broker, TreeMap<String, Long> counts, String pattern) throws Exception {
        Set<ObjectName> names = broker.queryNames(new ObjectName(pattern), null);
        for (ObjectName name : names) {
            String kind = name.getKeyProperty("request");
            counts.merge(kind == null ? name.getKeyProperty("name") : kind, (Long) broker.getAttribute(name, "Count"), Long::sum);
        }
    }
}
