import javax.management.MBeanServerConnection;
import javax.management.ObjectName;
import javax.management.remote.JMXConnectorFactory;
import javax.management.remote.JMXServiceURL;

/** Prints the bytes of topics that a broker has taken in and given out since its start. */
public class KafkaCounts {
    public static void main(String[] arguments) throws Exception {
        String address = "service:jmx:rmi:///jndi/rmi://127.0.0.1:" + arguments[0] + "/jmxrmi";
        try (var connector = JMXConnectorFactory.connect(new JMXServiceURL(address))) {
            MBeanServerConnection broker = connector.getMBeanServerConnection();
            print(broker, "in", "BytesInPerSec");
            print(broker, "out", "BytesOutPerSec");
        }
    }

    private static void print(MBeanServerConnection broker, String way, String name) throws Exception {
        var bytes = new ObjectName("kafka.server:type=BrokerTopicMetrics,name=" + name);
        // A broker has no such count before its first record.
        System.out.println(way + " " + (broker.isRegistered(bytes) ? broker.getAttribute(bytes, "Count") : 0));
    }
}
